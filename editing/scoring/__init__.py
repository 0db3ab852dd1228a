"""What a model says: how (prompt, target) pairs score, and texts it writes, with all edits that read prompts."""
