# What `--method auto`, the default, stands for; docs/commands/train.md, "auto", says how the recommended method was chosen.
recommended = 'fixmatch'
unlabeled_per_rank = 2  # in each batch, at least, for the recommended method: it mixes them
without_unlabeled = 'supervised'  # for a split with fewer unlabeled images
