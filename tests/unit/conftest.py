"""Puts this folder on the path, so that tests of all folders can import `tensorrt_names`."""
