"""Exit with 0 if the server in this container is ready; the HEALTHCHECK of the image.

It knows the address and TLS from the environment, as the server does, and not from the server's
flags. It asks inside the container, so it does not check the certificate, which is another name's.
"""

import http.client
import os
import socket
import ssl
import sys

HOST = os.environ.get("STEPWELL_HOST", "127.0.0.1")
PORT = os.environ.get("STEPWELL_PORT", "8700")
if "://" in PORT:  # Kubernetes said it, of a Service that is called stepwell; the server ignores it
    PORT = "8700"
UDS = os.environ.get("STEPWELL_UDS")
TIMEOUT_S = 4.0

EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # no address to ask

where = UDS or f"port {PORT}"
try:
    if UDS:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(TIMEOUT_S)
        connection.connect(UDS)
    else:
        connection = socket.create_connection((EVERY_ADDRESS.get(HOST, HOST), int(PORT)), TIMEOUT_S)
    if os.environ.get("STEPWELL_TLS_CERT"):
        connection = ssl._create_unverified_context().wrap_socket(connection)
    client = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
    client.sock = connection
    client.request("GET", "/readyz")
    answer = client.getresponse()
    text = answer.read(200).decode("utf-8", "replace")
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"no answer on {where}: {error}")
print(answer.status, text)
sys.exit(answer.status != 200)
