"""Optuna's part: what is tried next, and where its dashboard finds it. What has been done, the records alone say."""
