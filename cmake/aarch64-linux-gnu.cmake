# Toolchain for 64-bit Arm: Debian's cross compiler, jansson and xxhash unpacked into
# build/arm64-sysroot (their packages may not stand beside the machine's own), and qemu-user to run
# what is built. tools/setup.sh ci prepares all three; the preset is `aarch64`.
set(sysroot ${CMAKE_CURRENT_LIST_DIR}/../build/arm64-sysroot)
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
# The cross compiler's libraries are named, because its loader looks into /lib/aarch64-linux-gnu
# first: where arm64 packages are installed, it would take the libc of another glibc there, and
# pthread_create would spin for ever on a lock that this libc keeps elsewhere.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu
    -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib)
set(CMAKE_FIND_ROOT_PATH ${sysroot} /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(ENV{PKG_CONFIG_LIBDIR} ${sysroot}/usr/lib/aarch64-linux-gnu/pkgconfig)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${sysroot})
