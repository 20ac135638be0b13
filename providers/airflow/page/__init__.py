"""The page in Airflow's own UI: all loops in one table.

plugin   what Airflow loads; the page itself is made when it is first asked for
app      the routes: login, access to DAGs
rows     the reader's process, its time limit, a short memory
reader   that process: one row a loop, by treadle.status; no Airflow in it
table    the HTML
"""
