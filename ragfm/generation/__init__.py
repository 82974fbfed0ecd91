"""Generation: from a question and its passages to the reader's output.

passage_retrieval    the passages for a question, follow-ups included
prompt               the prompt: numbered passages and the question, within the window
prompt_template      prompt strategies; zero-shot.toml is the default
answer_stream        the reader's output as a stream
reader_output        normalised output: reasoning, preambles, citation markers
small_talk           greetings and thanks
structured_output    objects that meet a JSON schema
json_schema          schemas as grammars and as text for the prompt
conversation         conversations in files
answer_log           the answer log
log_storage          where it is: a file, or the database of a collection
log_entries          its entries, filters and redaction
followups            questions that depend on earlier ones
readers/             the foundation models
"""
