"""Citations: whether the passages support an answer, and how likely the answer is right. No model writes anything here.

grounding      cite an answer sentence by sentence, with markers and units, and check it with the verifier
support        does a passage support a sentence? what is wrong if not? does another one contradict it?
verifier       a small network that reads question and passages
confidence     signals of an answer, and their calibration
decision       answered, unsure or "I don't know.", and what a user sees of it
"""
