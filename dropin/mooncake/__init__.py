"""The import name that engines know; see the README for what is served."""
