"""The nouns that everything else speaks of: goal, task, context, record, and what surrounds them.

`goal` is what the user can afford to lose and needs to gain; `task` the data and the metric; `context` what a method
may read while it works; `record` the rows that a job writes and a report reads. `validation`, `user_code`, `folder`,
`outputs`, `processors` and `runner` are what those need. Nothing here knows a method, a runtime or a file format. The
names are offered by `gossamer` itself; this package imports nothing, because the command line must start without torch.
"""
