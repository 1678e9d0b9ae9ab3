"""Stand-ins for PyCUDA, libcuda and TensorRT that compute for real on the CPU, for machines without a GPU.

Work on a stream is put off until somebody waits for it, and then no more of it is done than is needed, so that a
missing wait, a wrong order or a buffer used too early gives wrong numbers. Memory starts as NaN. What the real modules
lack, these lack: the names come from lists made from the real ones.
"""
