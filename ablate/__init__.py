"""What was each DeepSeek-V3 change worth? Components, matched compute, attribution."""
