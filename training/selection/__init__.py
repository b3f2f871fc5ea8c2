"""Selection: which features and which learners are kept, by loss on later folds."""
