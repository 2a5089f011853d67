/* Plain C: restores a grey ramp of 100 x 80 pixels and prints the middle one. consumer_c MODEL.onnx BACKEND */
#include <clusir/clusir.h>

#include <stdio.h>

enum { WIDTH = 100, HEIGHT = 80 };
static uint8_t pixels[HEIGHT][WIDTH][3], result[HEIGHT][WIDTH][3];

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    for (int y = 0; y < HEIGHT; ++y) {
        for (int x = 0; x < WIDTH; ++x) pixels[y][x][0] = pixels[y][x][1] = pixels[y][x][2] = (uint8_t)(x + y);
    }
    clusir_open_options options = {.struct_size = sizeof options, .backend = argv[2]};
    clusir_model* model = NULL;
    const clusir_image in = {pixels, WIDTH, HEIGHT, 3, CLUSIR_U8, 0}, out = {result, WIDTH, HEIGHT, 3, CLUSIR_U8, 0};
    clusir_status status = clusir_open(argv[1], &options, &model);
    if (status == CLUSIR_OK) status = clusir_restore(model, &in, &out, NULL);
    if (status != CLUSIR_OK)
        fprintf(stderr, "error: %s\n", clusir_last_error());
    else
        printf("%d %d %d\n", result[40][50][0], result[40][50][1], result[40][50][2]);
    clusir_close(model);
    return status;
}
