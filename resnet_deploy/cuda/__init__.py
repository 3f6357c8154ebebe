"""The CUDA runtime, as little of it as inference needs: streams, events, memory, copies and graphs; nothing of models.

It is reached through ``cuda.bindings.runtime``, whose calls have the same form in the bindings of CUDA 12.9 and 13. The
runtime API works in the device's primary context, which PyTorch and CuPy work in as well: pointers, streams and events
are common property.
"""
