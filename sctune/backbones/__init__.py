"""Feature extractors: what is known of each before it is built, how it is built, and where its weights come from.

`registry` knows them by name; nothing here imports torch before a network or its weights are asked for, but `trunk`,
`grid` and `weights`, which are about tensors.
"""
