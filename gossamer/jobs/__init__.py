"""The two jobs, `compress` and `distill`: what happens between a goal and a folder of results.

`compression` and `distillation` are the jobs; `recipe` an ordered list of methods. A compression first looks at what it
will need (`preflight`), then tries networks (`attempts`) for a goal of time, multiply-adds or parameters (`shape_goal`)
or of bytes (`size_goal`), and at the end exports and measures (`exporting`). `gossamer` offers the names.
"""
