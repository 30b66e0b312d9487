"""The registry's work on models, over local folders: warm up, evaluate, profile, convert.

Runs in a process of its own, with packages that the registry server lacks; knows no wire, no
store and no operation.
"""
