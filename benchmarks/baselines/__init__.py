"""ragfm and other frameworks behind one interface: each module has a class `Peer`.

`Peer(model)` takes the folder of a sentence-transformers model. `fill(documents)` indexes texts by URI. `searches()`
returns search functions by name: each maps a query and k to URIs, best first, one per passage. Each peer is set up as
its documentation describes, with defaults for everything else.
"""
