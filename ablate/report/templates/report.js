(() => {
"use strict";
const SHOWN = 8, LONG = 16;
const all = (query, within = document) => [...within.querySelectorAll(query)];
const make = (tag, text, className) => {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  if (tag === "button") made.type = "button";
  return made;
};
const size = (text) => {
  const found = text.replace(/−/g, "-").replace(/(\d),(?=\d{3})/g, "$1").match(/^[+-]?\d+(\.\d+)?(e-?\d+)?/);
  if (!found) return null;
  const unit = text.slice(found[0].length).trim().charAt(0);
  return Number(found[0]) * ({ k: 1e3, M: 1e6, G: 1e9, B: 1e9, T: 1e12, P: 1e15, E: 1e18 }[unit] || 1);
};
const copier = (give, label) => {
  const button = make("button", label, "small");
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(give()); button.textContent = "Copied"; }
    catch { button.textContent = "The browser refused; select the text instead"; }
    setTimeout(() => { button.textContent = label; }, 2500);
  });
  return button;
};
const csv = (table) => all("tr", table).map((row) => all("th, td", row).map((cell) =>
  `"${cell.textContent.replace(/"/g, '""')}"`).join(",")).join("\n") + "\n";

all("table.sortable").forEach((table) => {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const state = { view: rows.length > LONG ? "first" : "all", wanted: "" };
  const show = () => {
    const order = [...body.rows].filter((row) => row.textContent.toLowerCase().includes(state.wanted));
    const view = state.wanted ? "all" : state.view;
    const kept = new Set(view === "first" ? order.slice(0, SHOWN) : view === "last" ? order.slice(-SHOWN) : order);
    [...body.rows].forEach((row) => row.classList.toggle("folded", !kept.has(row)));
  };
  heads.forEach((head, i) => {
    const button = make("button", head.textContent, "sort");
    head.textContent = "";
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => { const text = row.cells[i].textContent; const n = size(text); return n === null ? text : n; };
      const sorted = [...rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        const by = typeof x === "number" ? x - y : x.localeCompare(y);
        return down ? -by : by;
      });
      body.append(...sorted);
      show();
    });
  });
  const tools = make("div", "", "tools");
  if (rows.length > LONG) {
    const input = make("input");
    input.type = "search";
    input.placeholder = "Filter rows";
    input.setAttribute("aria-label", `Filter the rows of: ${table.caption.textContent}`);
    input.addEventListener("input", () => { state.wanted = input.value.toLowerCase(); show(); });
    tools.append(input);
    [["first", `First ${SHOWN}`], ["last", `Last ${SHOWN}`], ["all", `All ${rows.length}`]].forEach(([view, label]) => {
      const button = make("button", label, "small");
      button.setAttribute("aria-pressed", String(state.view === view));
      button.addEventListener("click", () => {
        state.view = view;
        all("[aria-pressed]", tools).forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        show();
      });
      tools.append(button);
    });
  }
  tools.append(copier(() => csv(table), "Copy CSV"));
  table.closest(".scroll").before(tools);
  show();
});

all("pre.copy").forEach((block) => block.before(copier(() => block.textContent, "Copy")));

const data = document.getElementById("report-data");
const answer = document.querySelector(".answer");
if (answer) {
  const tools = make("div", "", "tools");
  tools.append(copier(() => all("p", answer).map((p) => p.textContent).join("\n"), "Copy answer"),
    copier(() => data.textContent, "Copy JSON"));
  answer.after(tools);
}

all(".legend.series li").forEach((item) => {
  const button = make("button", "", "toggle");
  button.append(...item.childNodes);
  button.setAttribute("aria-pressed", "true");
  item.append(button);
  button.addEventListener("click", () => {
    const hidden = document.body.classList.toggle(`hide-${item.dataset.series}`);
    button.setAttribute("aria-pressed", String(!hidden));
  });
});

let closed = [];
addEventListener("beforeprint", () => {
  closed = all("details:not([open])");
  closed.forEach((part) => { part.open = true; });
});
addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
})();
