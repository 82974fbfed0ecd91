"""Generation: prompts, readers, follow-up questions, structured output and the answer log."""
