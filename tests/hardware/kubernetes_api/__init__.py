"""A cluster on loopback: the API that treadle uses, and behind it what a real cluster does with Jobs, Pods and RayJobs.

server.py   HTTP: create, get, list, patch, delete, logs; faults on demand
objects.py  what a client made, and does with it
cluster.py  the controllers: Job, KubeRay, garbage of nodes
node.py     a container as a process on this machine: signals, memory, deadline, its log
"""
