# Stepwell from R: the protocol in JSON, with httr2 and jsonlite and nothing else.
#
#   source("stepwell.R")
#   create_model(url, "line", list(w = matrix(0, 2, 1)), optimizer)
#   worker <- open_worker(url, "line", "r0")
#   worker <- push(worker, list(w = gradient))
#
# Parameters and gradients are named lists of numbers, vectors (one dimension), matrices and arrays.
# An error of the server stops with its own sentence; `tryCatch(..., error = ...)` catches it.

library(httr2)
library(jsonlite)

# One call; returns the answer, NULL if it has no body. It is repeated when the server says "later".
call_server <- function(url, method, path, body = NULL, query = list()) {
  call <- request(url) |>
    req_url_path_append(path) |>
    req_method(method) |>
    req_error(body = function(answer) {
      tryCatch(resp_body_json(answer, check_type = FALSE)$detail, error = function(e) NULL)
    }) |>
    req_retry(max_tries = 5, is_transient = function(answer) resp_status(answer) == 503)
  if (length(query) > 0) call <- do.call(req_url_query, c(list(call), query))
  token <- Sys.getenv("STEPWELL_TOKEN")
  if (nzchar(token)) call <- req_auth_bearer_token(call, token)
  if (!is.null(body)) {
    # 17 digits: a double comes through as it is. "null" keeps NULL apart from an empty list.
    text <- toJSON(body, auto_unbox = TRUE, digits = I(17), null = "null")
    call <- req_body_raw(call, text, type = "application/json")
  }
  answer <- req_perform(call)
  if (resp_status(answer) == 204) NULL else fromJSON(resp_body_string(answer))
}

# Numbers as nested lists: a vector stays a list of one number too, and only a scalar is a number.
as_rows <- function(tensor) {
  if (is.null(dim(tensor))) I(as.numeric(tensor)) else unclass(tensor)
}

shape_of <- function(tensor) {
  if (is.null(dim(tensor))) length(tensor) else dim(tensor)
}

# Create a model, or join the one that is there. `optimizer` is a list as keras3 writes it:
# `keras3::serialize_keras_object(optimizer_sgd(learning_rate = 0.1))`, or fromJSON of its JSON.
create_model <- function(url, name, parameters, optimizer) {
  tensors <- lapply(names(parameters), function(tensor) {
    list(name = tensor, shape = I(shape_of(parameters[[tensor]])), dtype = "float32")
  })
  invisible(call_server(url, "POST", "v1/models", list(
    name = name,
    tensors = tensors,
    values = lapply(parameters, as_rows),
    optimizer = optimizer,
    exist_ok = TRUE
  )))
}

# The parameters as a named list, with "version" as an attribute.
pull <- function(url, model) {
  answer <- call_server(url, "GET", paste0("v1/models/", model, "/parameters"))
  structure(answer$parameters, version = answer$version)
}

# Open a session: one worker, whose pushes are numbered from 0.
open_worker <- function(url, model, name) {
  path <- paste0("v1/models/", model, "/workers")
  session <- call_server(url, "POST", path, list(worker = name))
  list(
    url = url, model = model, name = name, epoch = session$epoch,
    incarnation = session$incarnation, sequence = 0L, result = NULL
  )
}

# Push gradients that were computed at `version`; returns the worker with `result` and the next number.
# If it stops because no answer came, call it again with the same worker: it has its effect once.
push <- function(worker, gradients, version = NULL) {
  path <- paste0("v1/models/", worker$model, "/gradients")
  worker$result <- call_server(worker$url, "POST", path, list(
    worker = worker$name,
    epoch = worker$epoch,
    incarnation = worker$incarnation,
    sequence = worker$sequence,
    version = version,
    gradients = lapply(gradients, as_rows)
  ))
  worker$sequence <- worker$sequence + 1L
  worker
}

close_worker <- function(worker) {
  path <- paste0("v1/models/", worker$model, "/workers/", worker$name)
  invisible(call_server(worker$url, "DELETE", path, query = list(epoch = worker$epoch)))
}
