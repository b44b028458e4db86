"""The dispatcher: messages become Jobs, and what becomes of the Jobs reaches the backend."""
