"""Citations: whether the passages support an answer, and how likely the answer is right. No model writes anything here.

grounding        cite an answer sentence by sentence, and compose its text with markers
support          does a passage support a sentence? what is wrong if not?
contradictions   does another passage give another number or name?
text_match       terms, units, negations, verbatim quotes
verifier         a small network that reads question and passages
answer_check     the answer compared with the verifier's readings
subject          are the names and periods of a question found with a quote?
units            the unit and scale of a bare number
nearest          what the documents say nearest to a question, and what a user sees of an answer
confidence       signals of an answer, and their calibration
decision         answered, unsure or "I don't know."
"""
