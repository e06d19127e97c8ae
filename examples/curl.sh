#!/bin/sh
# The whole protocol with curl and JSON: create a model, open a session, push, pull.
#
#     stepwell serve &
#     sh examples/curl.sh
#
# With a server elsewhere: STEPWELL_URL=https://... STEPWELL_TOKEN=sw_admin_... sh examples/curl.sh
set -eu
url=${STEPWELL_URL:-http://127.0.0.1:8700}

call() { # METHOD PATH [JSON]
    curl --silent --show-error --fail-with-body --request "$1" "$url$2" \
        --header "Authorization: Bearer ${STEPWELL_TOKEN:-none}" \
        --header "Content-Type: application/json" ${3:+--data "$3"}
    echo
}

call POST /v1/models '{
    "name": "tiny",
    "tensors": [{"name": "w", "shape": [2, 2]}],
    "values": {"w": [[1, 2], [3, 4]]},
    "optimizer": {"class_name": "SGD", "config": {"learning_rate": 0.5}},
    "exist_ok": true
}'

session=$(call POST /v1/models/tiny/workers '{"worker": "shell"}')
echo "$session"
epoch=$(echo "$session" | sed 's/^[^,]*, "epoch": \([0-9]*\),.*/\1/')
incarnation=$(echo "$session" | sed 's/.*"incarnation": "\([0-9a-f]*\)".*/\1/')

# A push says which session it belongs to and which number it has. Send the same one twice: the second
# answer says "duplicate": true, and nothing has changed.
push='{"worker": "shell", "epoch": '$epoch', "sequence": 0, "incarnation": "'$incarnation'",
       "gradients": {"w": [[2, 2], [2, 2]]}}'
call POST /v1/models/tiny/gradients "$push"
call POST /v1/models/tiny/gradients "$push"

call GET /v1/models/tiny/parameters
