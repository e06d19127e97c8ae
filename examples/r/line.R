# Fits a line through a server, from R.
#
#   stepwell serve &
#   Rscript examples/r/line.R

here <- dirname(sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE)))
source(file.path(here, "stepwell.R"))

url <- Sys.getenv("STEPWELL_URL", "http://127.0.0.1:8700")

# What keras3 writes for optimizer_sgd(learning_rate = 0.1, momentum = 0.9).
optimizer <- fromJSON(file.path(here, "optimizer_sgd.json"))

set.seed(1)
x <- matrix(runif(256, -1, 1), ncol = 1)
y <- 3 * x - 2 + 0.01 * rnorm(256)

create_model(url, "line-r", list(slope = matrix(0, 1, 1), offset = 0), optimizer)
worker <- open_worker(url, "line-r", "r0")
for (step in 1:200) {
  parameters <- pull(url, "line-r")
  error <- x %*% parameters$slope + parameters$offset - y
  gradients <- list(slope = 2 * t(x) %*% error / nrow(x), offset = 2 * mean(error))
  worker <- push(worker, gradients, attr(parameters, "version"))
}
close_worker(worker)

parameters <- pull(url, "line-r")
cat(sprintf(
  "y = %.2f x %+.2f at version %d\n",
  parameters$slope, parameters$offset, attr(parameters, "version")
))
