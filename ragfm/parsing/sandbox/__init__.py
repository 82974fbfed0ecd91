"""Parsing in confined worker processes, so that a hostile or damaged document harms nothing else.

worker_pool        the public part: hands documents to worker processes, returns futures
worker_process     one worker, seen from the parent: start, watch, stop
worker_protocol    the messages between the two
worker_main        the worker itself
supervisor         the process between the two, which ends the worker and all that it has started
confined_service   calls of a function in a worker, for archives, git repositories and chat templates
confinement        what the worker gives up before it reads the first document
"""
