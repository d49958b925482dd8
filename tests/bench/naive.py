"""The naive way: Bottle, cheroot and psycopg2 in thirty lines, with none of Poky's features.

python -m tests.bench.naive PORT DSN THREADS
"""

import sys

import bottle
import psycopg2.pool
from cheroot import wsgi

app = bottle.Bottle()
port, dsn, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
pool = psycopg2.pool.ThreadedConnectionPool(threads, threads, dsn)


def query(statement: str, *parameters: object) -> list[tuple]:
    connection = pool.getconn()
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()
    finally:
        pool.putconn(connection)


@app.get("/kv/<bucket>/<key>")
def get(bucket: str, key: str) -> bytes:
    rows = query("SELECT value FROM bench.naive WHERE bucket = %s AND key = %s", bucket, key)
    if not rows:
        bottle.abort(404)
    bottle.response.content_type = "text/plain"
    return bytes(rows[0][0])


@app.put("/kv/<bucket>/<key>")
def put(bucket: str, key: str) -> str:
    value = psycopg2.Binary(bottle.request.body.read())
    query(
        "INSERT INTO bench.naive (bucket, key, value) VALUES (%s, %s, %s) ON CONFLICT (bucket, key)"
        " DO UPDATE SET value = excluded.value RETURNING 1",
        *(bucket, key, value),
    )
    return ""


# With its default cheroot keeps ten connections alive, and would be slower still.
server = wsgi.Server(("127.0.0.1", port), app, numthreads=threads)
server.keep_alive_conn_limit = None
server.start()
