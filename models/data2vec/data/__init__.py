"""Data: text to token arrays, data sets over them, and the order of batches.

Nothing is imported here on purpose: the tokenizer, dictionary and file formats must load without torch,
because ``d2v prepare`` starts one process per core with them.
"""
