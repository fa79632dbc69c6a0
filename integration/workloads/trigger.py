# Counts, asks for its own checkpoint when /tmp/ask appears, and says what it is told.
import json, os, socket, sys, threading, time

PATH = "/run/kybernate/trigger.sock"

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()

def connect():
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(PATH)
            return connection
        except OSError:
            connection.close()
            time.sleep(0.05)

def watch():
    while True:
        with connect() as connection:
            try:
                connection.sendall(b'{"op":"watch"}\n')
                for line in connection.makefile("r"):
                    say("told", line.strip())
                    if json.loads(line).get("event") == "quiesce" and "never" not in sys.argv:
                        connection.sendall(b'{"op":"ready"}\n')
            except OSError:
                pass

def ask():
    with connect() as connection:
        connection.sendall(b'{"op":"checkpoint"}\n')
        say("asked", connection.makefile("r").readline().strip())

# One that nobody ever closes here: its other end goes before a dump.
held = connect()
threading.Thread(target=watch, daemon=True).start()
number = 0
while True:
    number += 1
    say("count", number)
    if os.path.exists("/tmp/ask"):
        os.remove("/tmp/ask")
        ask()
    time.sleep(0.05)
