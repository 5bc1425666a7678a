"""A fork server: a process per node that has done the imports, and forks a worker for each call.

Ray Train answers the loss of one worker by new processes for all, and what takes longest in a new
process are its imports of torch, transformers and DeepSpeed. So they are done once, in a process
that does nothing else, opens no GPU, and outlives the workers. Standard library alone.
"""
