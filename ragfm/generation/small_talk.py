"""Small talk, which is answered without the documents."""

GREETING = "Ask a question about the documents, such as “How many days of leave do I get?”."
SMALL_TALK = ("Hello!", "Thank you!")
"""A message without a question mark that is closer to one of these than to any passage is small talk."""
