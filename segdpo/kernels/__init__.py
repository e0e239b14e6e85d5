"""The arithmetic of scores on flat tensors: one file a kernel, no checks, no names of losses."""
