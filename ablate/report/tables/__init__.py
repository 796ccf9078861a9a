"""The tables of a report, with cells as text already: HTML, Markdown and the terminal show the same ones."""
