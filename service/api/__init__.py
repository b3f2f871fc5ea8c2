"""The contract: translates between protobuf messages and the core.

One module per service holds its messages and its methods; :mod:`service.api.methods` lists all methods by path. No
other package reads or writes messages of the contract.
"""
