"""`muloco-train --check-gpu`: whether this machine is fit to train, and how fast it will be, in minutes.

Each section runs in a process of its own (`sections`), so that one that crashes the device, or hangs, costs the others
nothing. What a section finds is printed at once and kept (`findings`). Needs torch, numpy and triton alone. Without a
GPU every section runs at tiny sizes, which says whether the code works and nothing about speed.
"""
