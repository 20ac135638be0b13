"""A small SageMaker on the loopback: speaks the JSON protocol, keeps states, and runs entrypoints as processes here.

server.py    HTTP: what AWS's clients ask for, and what is answered; faults on demand
shapes.py    what a request may say: botocore's model, limits and patterns included
machines.py  the life of a job: Starting, Downloading, Training, Uploading, and what takes its machine away

AWS's words are from its documentation and public reports.
"""
