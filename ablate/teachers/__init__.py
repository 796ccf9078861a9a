"""Who writes distilled text: runs, Hugging Face models and endpoints, and what their text must pass."""
