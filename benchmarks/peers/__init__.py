"""The same work on other systems, each in its own environment: `make bench-peers`.

    suite.py          asks all of them in turn, round by round, and judges
    environments.py   makes the environments, in `.venv-peers/`
    ports.py          free ports, for those that want to be told

and one program a contender: `stepwell_worker.py`, `naive_http.py`, `torch_rpc.py`,
`tensorflow_ps.py`, `mxnet_kvstore.py` and `ray_actor.py`. Each holds 25.6 M float32 parameters and
an Adam of its own in one process and works from another one; each shows first that three pushes
move the parameters as Adam moves them.
"""
