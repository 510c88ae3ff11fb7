/* Catches: a file of a compiled program that is taken though it is cut off, damaged or of another
 * key, or whose sizes lead outside of it.
 *
 * Input: the file. What is taken must be what writing the same would give. */
#include <string.h>

#include "gpu/opencl/ocl.h"
#include "tests/fuzz/memory_file.h"

static const char key[] = "device, driver, sources and options";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ocl_cache_file file, again;
    memory_file f = memory_file_make(data, size);
    bool taken = ocl_cache_open(&file, f.path, key);
    check(taken == (file.map != NULL));
    if (taken) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/catflap-fuzz-%ld", (long)getpid());
        check(file.bytes > 0 && file.bytes < size &&
              file.data + file.bytes == (uint8_t *)file.map + file.map_bytes);
        check(ocl_cache_write(path, key, file.data, file.bytes) == 0);
        check(ocl_cache_open(&again, path, key) && again.map_bytes == size &&
              memcmp(again.map, data, size) == 0);
        ocl_cache_close(&again);
        unlink(path);
    }
    ocl_cache_close(&file);
    close(f.fd);
    return 0;
}
