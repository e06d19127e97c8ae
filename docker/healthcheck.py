"""Exit with 0 if the server in this container is ready; the HEALTHCHECK of the image.

It knows the port and TLS from the environment, as the server does, and not from the server's flags.
It asks the container's own loopback, so it does not check the certificate, which is another name's.
"""

import http.client
import os
import ssl
import sys

PORT = int(os.environ.get("STEPWELL_PORT", "8700"))
TIMEOUT_S = 4.0

connection = (
    http.client.HTTPSConnection(
        "127.0.0.1", PORT, timeout=TIMEOUT_S, context=ssl._create_unverified_context()
    )
    if os.environ.get("STEPWELL_TLS_CERT")
    else http.client.HTTPConnection("127.0.0.1", PORT, timeout=TIMEOUT_S)
)
try:
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    text = answer.read(200).decode("utf-8", "replace")
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"no answer on port {PORT}: {error}")
print(answer.status, text)
sys.exit(answer.status != 200)
