# Two commands: `make demo` shows the library at work, `make test` runs every test. Both set themselves up.
.PHONY: all lib demo test bench clean
BUILD ?= build
JOBS ?= $(shell nproc)

all: $(BUILD)/CMakeCache.txt
	@cmake --build $(BUILD) -j $(JOBS)

$(BUILD)/CMakeCache.txt:
	@scripts/setup.sh
	@cmake -S . -B $(BUILD) $(CMAKE_FLAGS)

# Real tensors attended, checked and ranked: CPU kernels only, so that it is there within a minute.
demo:
	@scripts/setup.sh
	@cmake -S . -B build-demo -DATTN_CUDA=OFF -DATTN_BUILD_TESTS=OFF >/dev/null
	@cmake --build build-demo -j $(JOBS) >/dev/null
	@build-demo/attn demo

test:
	@scripts/setup.sh test
	@cmake -S . -B $(BUILD) $(CMAKE_FLAGS) >/dev/null
	@cmake --build $(BUILD) -j $(JOBS)
	@ctest --test-dir $(BUILD) --output-on-failure

bench: all
	@scripts/setup.sh
	$(BUILD)/attn bench --suite prefill,decode --html report.html --json report.json

clean:
	rm -rf $(BUILD) build-demo
