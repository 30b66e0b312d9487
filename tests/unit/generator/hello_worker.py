"""Stands in for the engine's process: says that it is there, waits for the other side to go."""

import socket
import sys

if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        connection.sendall(b"ready\n")
        connection.recv(1)
