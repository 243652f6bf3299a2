# `make` alone says what there is.
.DEFAULT_GOAL := help

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# tools/build says how the shipped binary is built.
export VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

# The shipped binary must not grow beyond this. A test names the packages that
# would do it.
MAX_BINARY_BYTES := 13000000

PLATFORMS := amd64 arm64
IMAGE     ?= svid-watchdog:$(VERSION)

.PHONY: help
help: ## Say what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

.PHONY: build
build: ## Build the watchdog into bin/
	tools/build bin/watchdog

.PHONY: test
test: ## Get what the tests need, run all of them, name what could not run
	tools/test

.PHONY: race
race: ## Run the tests with the race detector
	tools/test race

.PHONY: lint
lint: ## Run go vet and golangci-lint
	go vet ./...
	tools/neighbours golangci-lint
	.neighbours/bin/golangci-lint run ./...
	tools/neighbours actionlint
	.neighbours/bin/actionlint .github/workflows/*.yaml

.PHONY: fmt
fmt: ## Format the code
	gofmt -l -w $$(git ls-files '*.go')

.PHONY: neighbours
neighbours: ## Get the real systems that the tests need into .neighbours/
	tools/neighbours

.PHONY: dist
dist: ## Build the watchdog for the images into dist/
	for arch in $(PLATFORMS); do \
		GOOS=linux GOARCH=$$arch tools/build dist/linux-$$arch/watchdog; \
	done

.PHONY: size
size: dist ## Report the size of the binaries, and fail if one grew too big
	@for arch in $(PLATFORMS); do \
		bytes=$$(wc -c <dist/linux-$$arch/watchdog); \
		echo "size: linux-$$arch $$bytes bytes of at most $(MAX_BINARY_BYTES)"; \
		[ "$$bytes" -le $(MAX_BINARY_BYTES) ] || { echo "size: too big; 'go version -m' and 'go list -deps' say what is in it" >&2; exit 1; }; \
	done

.PHONY: image
image: dist ## Build the container images with buildah, docker or podman
	IMAGE=$(IMAGE) VERSION=$(VERSION) tools/image $(PLATFORMS)

.PHONY: bench
bench: ## Measure what it costs and rewrite the tables of docs/footprint.md; BENCH=memory for one part
	tools/neighbours envoy spiffe-helper || true
	go run ./tools/bench $(BENCH)

.PHONY: microbench
microbench: ## Run the Go benchmarks of the hot paths, ready for benchstat
	go test -run '^$$' -bench . -benchmem -count $(or $(COUNT),1) ./...

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME, 5 minutes unless set
	tools/fuzz $(or $(FUZZTIME),5m)

.PHONY: fault-matrix
fault-matrix: ## Inject every fault on every Envoy, and print the table
	tools/neighbours envoy
	@table=$$(mktemp); trap 'rm -f "$$table"' EXIT; status=0; \
	FAULT_MATRIX=$$table CI=true go test -count=1 -parallel 32 -timeout 60m -run '^TestFaults$$' ./internal/lab || status=$$?; \
	cat "$$table"; exit $$status

.PHONY: soak-short
soak-short: ## Stand beside real Envoys for an hour: no problem, flat memory
	tools/neighbours envoy
	SOAK=1h CI=true go test -count=1 -timeout 70m -v -run '^TestSoak$$' ./internal/e2e

.PHONY: soak
soak: ## Let everything happen to the watchdog at random, for CHAOS, 24 hours unless set
	tools/neighbours envoy spire
	CHAOS=$(or $(CHAOS),24h) CI=true go test -count=1 -timeout 0 -v -run '^TestChaos$$' ./internal/e2e/chaos

.PHONY: reproducible
reproducible: ## Build binaries and images twice, and compare their digests
	tools/reproducible

.PHONY: record
record: ## Record what real Envoys answer, for the tests of the parsers
	tools/neighbours envoy
	RECORD=$(CURDIR)/internal/envoy/testdata/recorded CI=true go test -count=1 -timeout 20m -run '^TestRecord$$' ./internal/lab

.PHONY: dashboards
dashboards: ## Write the dashboards in deploy/grafana/ anew
	go run ./tools/dashboards

.PHONY: deploy
deploy: ## Write the settings of Istio in deploy/istio out of the templates there
	go run ./tools/istioconfig

.PHONY: mesh-up
mesh-up: ## Run a real control plane with the injection templates, to look at
	tools/neighbours istio kubernetes
	@go run ./tools/mesh

.PHONY: deploy-check
deploy-check: ## Have a real control plane judge deploy/, and print the merged pod of each variant
	tools/neighbours istio kubernetes
	@pods=$$(mktemp -d); trap 'rm -rf "$$pods"' EXIT; status=0; \
	MERGED_PODS=$$pods CI=true go test -count=1 -timeout 10m -v ./internal/e2e/meshtest ./tools/istioconfig || status=$$?; \
	for pod in "$$pods"/guarded-*.yaml "$$pods"/strict-*.yaml; do printf '\n--- %s\n' "$$(basename "$$pod" .yaml)"; cat "$$pod"; done; \
	echo "deploy-check: $$([ $$status = 0 ] && echo "all is as deploy/istio/README.md says" || echo FAILED, see above the pods)"; exit $$status

.PHONY: screenshots
screenshots: ## Take the pictures of the status page in docs/ anew
	tools/neighbours browser
	SCREENSHOTS=$(CURDIR)/docs/images CI=true go test -count=1 -run '^TestInABrowser$$' ./internal/web

.PHONY: recording
recording: ## Record the lab and the check for the README anew
	tools/recording

.PHONY: rules
rules: ## Write the PrometheusRule from the rules; RUNBOOKS=URL says where they are read
	tools/rules

.PHONY: rules-check
rules-check: ## Check the rules, their tests and the examples with promtool and amtool
	promtool check rules deploy/prometheus/rules.yaml
	promtool test rules deploy/prometheus/tests/*.yaml
	amtool check-config deploy/prometheus/alertmanager.yaml

.PHONY: clean
clean: ## Remove what was built; .neighbours stays
	rm -rf bin dist
