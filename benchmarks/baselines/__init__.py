"""Other frameworks, and this one, behind one form: each file has a `Peer`.

`Peer(model)` takes the folder of a sentence-transformers model, `fill(documents)` texts by uri, and `searches()` gives
its ways of searching by name: functions of a query and k to uris, best first, one for each passage found. Each is set
up as the framework's own documentation does it; what else a file says would be the default.
"""
