"""A store on PostgreSQL: its schema, its connections, its errors. What is asked of it is asked elsewhere.

The triggers and views are in `migrations/postgresql`, and nowhere else.
"""
