# Short names for what is done often. Everything here is a plain go command; .ci/run is the judge.
GO      ?= go
FUZZTIME ?= 20s
KILLS   ?= 1000
VECTORS  = $(shell grep -lr --include=*_test.go 'func Test[A-Za-z]*Vectors' . | xargs -r -n1 dirname | sort -u)

.PHONY: dist check test race fuzz bench vectors parity torture

check: ## all that a change must pass
	.ci/run
test:
	$(GO) test ./...
race:
	$(GO) test -race ./...
fuzz: ## every fuzz target for FUZZTIME
	@set -e; for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$p; \
	  done; done
bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...
	$(GO) run ./cmd/usp bench
	$(GO) run ./cmd/usp bench --storage
	$(GO) -C benchmarks test -bench . -benchtime 5x .
vectors: ## rewrite the test vectors; the change must be explained in the commit
	$(GO) test -run Vectors $(VECTORS) -update
parity: ## the same bits over 10^5 steps: amd64 v1 and v3, no FMA, any GOMAXPROCS, arm64 in qemu-user; and no fused operation
	TORTURE=1 $(GO) test -timeout 30m -count 1 -v -run '^Test(SameBits|Trace|Difference|Machine|Program)' ./predictor ./detmath
torture: ## every system call, every crash, every byte, every fault, KILLS random kills; CONTRIBUTING.md says how long it takes
	TORTURE=1 TORTURE_KILLS=$(KILLS) $(GO) test -p 1 -run 'Crash|Kill|Torn|Torture|Fault|Every|Disk|Directory|Permission|SameBits|NotFused|Coverage|FalseAlarms|RunLength' -count 1 -timeout 0 -v ./...
dist: ## binaries, .tar.gz and .deb for linux amd64 and arm64, with man pages and completions, in dist/
	deploy/dist
