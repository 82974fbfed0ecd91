"""Citations: whether the passages support an answer, and how likely the answer is right. No model writes anything here.

answer_check   an answer with its citations, compared with the verifier's readings
grounding      cite an answer sentence by sentence, with markers and units
support        does a passage support a sentence? what is wrong if not? does another one contradict it?
verifier       a small network that reads question and passages
confidence     signals of an answer, and their calibration
decision       answered, unsure or "I don't know.", and what a user sees of it
"""
