/* The one place that compiles volk: the Vulkan loader is opened at run time, so that the program
 * starts where there is none. Alone in its file so that a test can wrap volkLoadDeviceTable. */
#define VOLK_IMPLEMENTATION
#include <volk.h>
