"""Video: from folders of files to strictly nested training subsets, and their latents.

`decode` reads frames, `probe` decodes a whole file and scores it, `catalog` lists every file of every source,
`select` applies thresholds, `subset` draws hours, `latents` stores what the tokenizer makes of the frames,
and `clips` finds the windows in them.
"""
