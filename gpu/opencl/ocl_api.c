/* libOpenCL, opened at run time, so that the program starts where there is none. Owns the table of
 * its functions; once loaded it stays. Threads: any. */
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

#include "gpu/opencl/ocl.h"

struct ocl_api ocl_api;

static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t loaded_by; /* 0: not yet; under load_lock */

int ocl_api_load(cf_err *err)
{
    int rc = 0;
    void *library = NULL;
    pthread_mutex_lock(&load_lock);
    if (loaded_by && loaded_by != getpid())
        rc = CF_FAIL(err, CF_EDEVICE,
                     "OpenCL was in use before this process was forked: its threads are not here");
    if (loaded_by)
        goto done;
    struct ocl_api api;
    library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        rc = CF_FAIL(err, CF_EDEVICE, "there is no OpenCL loader (libOpenCL.so.1)");
        goto done;
    }
#define OCL_LOAD(f)                                                                                \
    {                                                                                              \
        void *symbol = dlsym(library, #f);                                                         \
        if (!symbol && rc == 0)                                                                    \
            rc = CF_FAIL(err, CF_EDEVICE, "libOpenCL.so.1 lacks %s: OpenCL 1.2 is needed", #f);    \
        memcpy(&api.f, &symbol, sizeof symbol);                                                    \
    }
    OCL_FUNCTIONS(OCL_LOAD)
#undef OCL_LOAD
    if (rc < 0) {
        dlclose(library);
        goto done;
    }
    ocl_api = api;
    loaded_by = getpid();
done:
    pthread_mutex_unlock(&load_lock);
    return rc;
}

const char *ocl_status_name(cl_int status)
{
    switch (status) {
#define NAME(x)                                                                                    \
    case x:                                                                                        \
        return #x
        NAME(CL_DEVICE_NOT_FOUND);
        NAME(CL_DEVICE_NOT_AVAILABLE);
        NAME(CL_COMPILER_NOT_AVAILABLE);
        NAME(CL_MEM_OBJECT_ALLOCATION_FAILURE);
        NAME(CL_OUT_OF_RESOURCES);
        NAME(CL_OUT_OF_HOST_MEMORY);
        NAME(CL_BUILD_PROGRAM_FAILURE);
        NAME(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST);
        NAME(CL_INVALID_VALUE);
        NAME(CL_INVALID_DEVICE);
        NAME(CL_INVALID_CONTEXT);
        NAME(CL_INVALID_COMMAND_QUEUE);
        NAME(CL_INVALID_HOST_PTR);
        NAME(CL_INVALID_MEM_OBJECT);
        NAME(CL_INVALID_BINARY);
        NAME(CL_INVALID_PROGRAM_EXECUTABLE);
        NAME(CL_INVALID_KERNEL_NAME);
        NAME(CL_INVALID_KERNEL_ARGS);
        NAME(CL_INVALID_ARG_SIZE);
        NAME(CL_INVALID_WORK_GROUP_SIZE);
        NAME(CL_INVALID_EVENT);
        NAME(CL_INVALID_OPERATION);
        NAME(CL_INVALID_BUFFER_SIZE);
#undef NAME
    case -1001:
        return "CL_PLATFORM_NOT_FOUND_KHR";
    default:
        return "an unnamed OpenCL error";
    }
}
